"""Processes that begin at once: forks of a server that has imported the package, which takes ten seconds each time."""

from multiprocessing import get_context

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(["duolora.ui.work", "duolora.bench.config"])
