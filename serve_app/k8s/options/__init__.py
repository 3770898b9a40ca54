"""What a values file may add to an installation: External Secrets, a quota, TLS, sign-in, alerts and logs."""
