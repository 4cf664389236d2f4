"""The routes, a file per family of clients: thin, from a body to a job to an answer."""
