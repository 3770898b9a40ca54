"""An installation: the base objects, and the folder to apply."""
