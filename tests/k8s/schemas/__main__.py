"""`python -m tests.k8s.schemas FOLDER`: the schemas anew, from CRDs and eksctl-schema.json in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.k8s.schemas import FILE, pack

if __name__ == "__main__":
    FILE.write_bytes(pack(Path(sys.argv[1])))
    print(f"{FILE}: {FILE.stat().st_size} bytes")
