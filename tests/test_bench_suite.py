"""python -m bench: every benchmark is called with arguments it knows."""

import argparse
from pathlib import Path

import pytest

from bench import __main__ as suite


class ParsedError(Exception):
    pass


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("entry", suite.SUITE, ids=lambda entry: entry[0].__module__)
def test_arguments_of_every_benchmark_are_known(entry, quick, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, argv):
        raise ParsedError(parse(parser, argv))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    run, takes_device, arguments = entry
    device = ["--device", "cuda"] if takes_device else []
    with pytest.raises(ParsedError):
        run([*device, *(arguments if quick else ())])


def test_other_devices_run_what_is_not_of_a_cpu_alone(monkeypatch):
    called = []
    entries = ((called.append, True, ("--quick",)), (called.append, False, ("--short",)))
    monkeypatch.setattr(suite, "SUITE", entries)
    monkeypatch.setattr(suite, "results_path", lambda name, device: Path(device) / name)
    monkeypatch.setattr(suite.plot, "main", called.append)
    suite.main(["--device", "cuda", "--quick"])
    assert called == [["--device", "cuda", "--quick"], ["--folder", "cuda"]]
    called.clear()
    suite.main([])
    assert called == [["--device", "cpu"], [], ["--folder", "cpu"]]
