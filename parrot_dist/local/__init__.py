"""What a laptop needs to play the cluster: an S3 server, a Ray head and made-up data, all on loopback."""
