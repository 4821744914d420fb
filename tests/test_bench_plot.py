"""Pictures and README's tables, made from the tables of a few small layers."""

from dataclasses import asdict

import pytest
from test_bench_never_slower import a_result

from bench import harness, plot, readme
from bench.harness import Row
from bench.memory import Peak

NAMES = ("ViT-B MLP in", "small MLP")


def layer_rows(*, name=NAMES[0], layout="tokens", losing=False):
    rows = []
    for share in (1.0, 0.5, 0.25, 0.125):
        speedups = {"dense": 1.0, "naive": 0.9, plot.EXACT: 2 - share, plot.PARTIAL: 0.8 / share}
        if losing:
            speedups[plot.EXACT] = 0.9
        for provider, speedup in speedups.items():
            ours = provider.startswith("ours")
            rows.append(
                Row(
                    operator="layer backward", geometry=f"linear 8->16 @ 12x8 ({name})",
                    dtype="float32", layout=layout, active=share, provider=provider, dense_ms=10.0,
                    ms=10 / speedup, p20=1.0, p80=1.0, speedup=speedup,
                    ceiling_ms=10 / speedup * 0.8 if ours else None,
                    ceiling_share=0.8 if ours else None, path="packed (native)" if ours else "",
                )
            )  # fmt: skip
    return rows


@pytest.fixture
def folder(tmp_path):
    rows = [
        *layer_rows(),
        *layer_rows(name=NAMES[1], losing=True),
        *layer_rows(name="in no table", layout="channels_last"),
    ]
    harness.write_csv(tmp_path / "machine" / "layers.csv", rows)
    results = [
        a_result(), a_result(run="2"), a_result(active=0.1, speed=0.9, low=0.88, high=0.92),
        a_result(active=0.1, run="2"),
    ]  # fmt: skip
    harness.write_csv(tmp_path / "machine" / "never_slower.csv", results)
    return tmp_path / "machine"


def test_every_table_becomes_pictures(folder):
    names = ["layers-contiguous", "layers-channels_last", "layers-ceiling", "never_slower"]
    plot.main(["--folder", str(folder)])
    for name in names:
        assert (folder / f"{name}.png").stat().st_size > 5000
    assert [path.stem for path in plot.draw(folder)] == names


def test_shares_of_the_ceiling_by_layer_and_nominal_share(folder):
    found = plot._shares(plot.read(folder / "layers.csv"), plot.EXACT)
    assert found["small MLP, tokens"] == {0.5: 0.8, 0.25: 0.8, 0.1: 0.8}
    assert len(found) == 3


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(SystemExit, match=r"expected layers\.csv or never_slower\.csv"):
        plot.main(["--folder", str(tmp_path)])
    harness.write_csv(tmp_path / "layers.csv", [])
    with pytest.raises(ValueError, match=r"found none; run python -m bench\.layers"):
        plot.draw(tmp_path)


def test_readme_says_what_the_tables_say():
    text = readme.README.read_text(encoding="utf-8")
    assert "<!-- bench:layers " in text
    assert readme.fill(text) == text, "run python -m bench.readme"


def block(name):
    return f"before\n<!-- bench:{name} machine -->\nold\n<!-- /bench -->\nafter\n"


def test_layers_of_readme(folder):
    text = readme.fill(block("layers"), folder.parent)
    assert text.startswith("before\n<!-- bench:layers machine -->\n| layer |")
    assert text.endswith("\n<!-- /bench -->\nafter\n")
    assert "old" not in text
    assert (
        "| ViT-B MLP in | tokens | 10.00 | 1.00x | 1.50x | 80% | 1.88x | 80% | packed | 0.90x | "
        "6.40x |"
    ) in text
    assert "in no table |" not in text
    assert "All 9 measurements below 100 %: 3 below 0.97x" in text
    assert "small MLP (tokens, 50%) 0.90x" in text
    assert readme.fill(text, folder.parent) == text


def test_never_slower_of_readme(folder):
    text = readme.fill(block("never_slower"), folder.parent)
    assert "2 points in 2 fresh processes: 1 slower than dense beyond noise" in text
    assert "At first 25.0% were below 0.97x, dense against itself 0.0%." in text
    assert "- 0.90x (-1000 us on 2.00 ms): linear 8->16" in text


def test_memory_of_readme(tmp_path):
    peaks = [
        Peak("net", "contiguous", "dense", 200.0, 1.0),
        Peak("net", "contiguous", "ours, 10 % active", 150.0, 0.75),
    ]
    harness.write_csv(tmp_path / "machine" / "memory.csv", peaks)
    text = readme.fill(block("memory"), tmp_path)
    assert "| network | layout | dense, MiB | ours, 10 % active |" in text
    assert "| net | NCHW | 200 | 75.0% |" in text


def test_whole_networks_of_readme(tmp_path):
    base = layer_rows()[0]
    rows = []
    for pattern, share, speedups in (
        ("random", 1.0, {plot.EXACT: 0.99}),
        ("random", 0.5, {plot.EXACT: 1.25}),
        ("random", 0.1, {"naive": 1.3, plot.EXACT: 1.7, plot.PARTIAL: 5.0}),
        ("prefix", 0.5, {plot.EXACT: 1.9}),
    ):
        for operator, factor in (("whole backward", 1.0), ("whole step", 0.5)):
            for provider, speedup in speedups.items():
                values = asdict(base) | dict(
                    operator=operator, geometry=f"net @ 2x3, {pattern}", active=share,
                    provider=provider, speedup=factor * speedup, ceiling_share=0.9,
                )  # fmt: skip
                rows.append(Row(**values))
    harness.write_csv(tmp_path / "machine" / "train.csv", rows)
    text = readme.fill(block("train"), tmp_path)
    assert (
        "| net | tokens | 10 | 0.99x | 1.25x | 1.70x | 90% | 1.30x | 5.00x | 0.85x | 1.90x |"
    ) in text


def test_blocks_that_cannot_be_filled(folder):
    with pytest.raises(ValueError, match="bench:layer: expected one of layers"):
        readme.fill(block("layer"), folder.parent)
    with pytest.raises(ValueError, match="expected <!-- /bench --> after every"):
        readme.fill(block("layers").replace("/bench", "bench"), folder.parent)


def test_check_fails_and_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text("text")
    monkeypatch.setattr(readme, "README", path)
    monkeypatch.setattr(readme, "fill", lambda text: "other")
    with pytest.raises(SystemExit, match=r"run python -m bench\.readme"):
        readme.main(["--check"])
    assert path.read_text() == "text"
    readme.main([])
    assert path.read_text() == "other"
    readme.main(["--check"])
