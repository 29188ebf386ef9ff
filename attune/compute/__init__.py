"""What every stage that runs torch needs: threads and device, autocast, batches by length, out-of-memory retries."""
