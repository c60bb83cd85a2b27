"""What leaves the sidecar: the ledger, the documents of a run, and the way upstream."""
