"""What people are asked, and their answers."""
