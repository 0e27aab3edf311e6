"""Where flows become deployments: for a work pool (`prefect.yaml`), or served from one process (`serve.py`)."""
