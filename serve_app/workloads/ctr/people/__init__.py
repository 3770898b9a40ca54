"""Who is asked: banks, a user's own file, samples."""
