"""What the autoscaler may be given, and where the driver leaves its wish."""

from __future__ import annotations

from hypothesis import strategies as st

from serve_app.driver.demand import kv_key

KEY = kv_key("replicas", "Replica")

counts = st.integers(0, 10_000)
# Serve's mean is a number of 0 or more; the policy must stand anything, as it runs in Serve's controller.
requests = st.floats(allow_nan=True, allow_infinity=True)
