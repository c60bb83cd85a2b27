"""The ground all rooms stand on: units, errors, canonical JSON, ids, files, life, and the types that travel."""
