"""Ray Serve deployments: the engine's replica, and the builders that config.yaml names."""
