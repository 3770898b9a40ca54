"""Tests of cluster/lab.sh."""
