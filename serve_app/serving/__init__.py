"""Ray Serve deployments: the replica that holds an engine, and the builders that config.yaml names."""
