"""``coalface-miner serve``: the service, until it is told to stop."""

from __future__ import annotations

from miner.cli.options import ConfigOption, PrintConfigOption, SetOption, resolve

__all__ = ["serve"]


def serve(
    config: ConfigOption = None,
    overrides: SetOption = None,
    print_config: PrintConfigOption = False,
) -> None:
    """Embed, mine and stream until SIGTERM or Ctrl-C.

    The address is logged and written to `endpoint.json` in the state folder.
    """
    settings = resolve(config, overrides, print_config)
    from miner.app.serve import run_service

    run_service(settings)
