"""What a job has committed, on a disk or in an object store."""
