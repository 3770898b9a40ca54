"""`python -m tests.k8s.schemas FOLDER [FILE]`: a file of schemas anew, from CRDs and eksctl-schema.json in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.k8s import schemas

if __name__ == "__main__":
    folder, name = [*sys.argv[1:], "crds.json.xz"][:2]
    file = schemas.FOLDER / name
    file.write_bytes(schemas.pack(Path(folder)))
    print(f"{file}: {file.stat().st_size} bytes")
