"""An installation: the ground that every way to run stands on, and the folder that is applied as it stands."""
