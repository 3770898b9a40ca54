"""What people do with serve_app, end to end, at a terminal. `python -m tests.journeys` runs them."""
