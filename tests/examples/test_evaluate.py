"""The example of an evaluation runs, and says what it measured."""

import runpy
from pathlib import Path

from squeezeattention.evaluation import Settings

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate.py"


def test_it_prints_a_line_for_each_way(tmp_path, capsys, monkeypatch):
    main = runpy.run_path(str(EXAMPLE))["main"]
    monkeypatch.setitem(main.__globals__, "Settings", lambda **given: Settings(**{**given, "samples": 1}))
    main(str(tmp_path / "out"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["full", "uniform", "probe"]
    shares = [int(line.split("right, ")[1].split("%")[0]) for line in lines[-3:]]
    assert shares[0] == 100
    assert all(20 < share < 40 for share in shares[1:])
    assert (tmp_path / "out" / "summary.json").is_file()
