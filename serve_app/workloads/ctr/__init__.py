"""Click-through prediction over a synthetic population."""
