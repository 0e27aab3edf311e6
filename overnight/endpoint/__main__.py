"""`python -m overnight.endpoint`: start the server from the command line."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from overnight.endpoint.server import serve
from overnight.endpoint.settings import Settings, package_version

app = App(name="python -m overnight.endpoint", version=package_version())


@app.default
def main(settings: Annotated[Settings, Parameter(name="*")] = Settings()) -> int:  # noqa: B008 - frozen, so shared safely
    """Serve the OpenAI Files and Batches API over a real-time API, by default the embedded model."""
    return serve(settings)


if __name__ == "__main__":
    sys.exit(app())
