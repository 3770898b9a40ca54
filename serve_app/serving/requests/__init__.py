"""Requests as values that cross to another replica, and what is made of them there."""
