"""The runs of a sweep as a table for notebooks."""

import subprocess
import sys

import pytest
from sweep.test_seeds import BASE, BETTER, finish, rounds

import attnzoo
from attnzoo.errors import UserError


@pytest.fixture
def table(tmp_path):
    finish(rounds(tmp_path, "seeds: [10, 11, 12]"), {"dense": BASE[:3], "deform": BETTER[:2]})
    return attnzoo.results(tmp_path / "runs")


def test_rows_are_runs_with_their_final_metrics(table):
    assert table.columns == ["variant", "seed", "state", "hours", "AP"]
    assert [(row["variant"], row["seed"], row["AP"]) for row in table] == [
        ("dense", 10, BASE[0]), ("dense", 11, BASE[1]), ("dense", 12, BASE[2]),
        ("deform", 10, BETTER[0]), ("deform", 11, BETTER[1]),
    ]  # fmt: skip
    assert len(table) == 5
    assert table[0]["state"] == "done"
    assert table["AP"] == BASE[:3] + BETTER[:2]
    with pytest.raises(KeyError, match="expected one of variant, seed"):
        table["ap"]


def test_text_and_html_show_all_rows(table):
    assert repr(table).splitlines()[1].split() == ["dense", "10", "done", "0.1"]
    html = table._repr_html_()
    assert html.count("<tr>") == 6
    assert "<td>deform</td>" in html


def test_data_frame(table):
    pandas = pytest.importorskip("pandas", reason="NOT TESTED HERE: pandas is not installed")
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == table.columns


def test_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no runs in it"):
        attnzoo.results(tmp_path)


def test_results_load_no_torch(table, tmp_path):
    program = f"import attnzoo, sys; print(len(attnzoo.results({str(tmp_path / 'runs')!r})), 'torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["5", "False"]
