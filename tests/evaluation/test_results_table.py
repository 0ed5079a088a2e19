"""The tables of results, against numbers worked out by hand."""

from megapairs_hf.evaluation.results_table import headline, results_tables


def record(model, strategy="fused", metric="recall@1", value=0.5, **more):
    return {"benchmark": "b", "split": "val", "metric": metric, "value": value, "queries": 100, "gallery": 50} | {
        "model": model,
        "strategy": strategy,
        "options": {},
        "ties": 0,
        **more,
    }


def test_what_differs_between_rows_stands_in_the_rows():
    table = results_tables([record("a", gallery=50), record("b", gallery=2000, options={"gallery": "union"})])[0]
    assert table.stated == ["queries 100"]
    assert [row.apart for row in table.rows] == ["gallery 50", "gallery union"]


def test_no_gain_is_told_between_measurements_of_another_kind():
    rows = results_tables([record("base", queries=100), record("trained", value=0.9, queries=10)])[0].rows
    assert [row.cells[0].gain for row in rows] == [None, None]


def test_values_that_print_alike_are_both_best():
    cells = [row.cells[0] for row in results_tables([record("a", value=0.25701), record("b", value=0.25704)])[0].rows]
    assert [cell.best for cell in cells] == [True, True]


def test_a_metric_that_one_model_lacks_is_not_measured():
    table = results_tables([record("a"), record("a", metric="recall@5"), record("b")])[0]
    assert table.columns == ["R@1", "R@5"]
    assert [row.cells[1] is None for row in table.rows] == [False, True]


def test_benchmarks_and_splits_are_tables_of_their_own():
    assert [t.title for t in results_tables([record("a"), record("a", split="test")])] == ["b · val", "b · test"]


def test_headline_says_when_training_did_not_help():
    told = headline([record("base", value=0.3), record("trained", value=0.2)])
    assert "from 30.0 % to 20.0 %" in told
    assert headline([record("trained")]) == ""


def test_headline_compares_only_what_was_measured_alike():
    other = [record("base", benchmark="a", value=0.9), record("trained", benchmark="a", value=0.1, gallery=9)]
    assert headline(other) == ""
    assert "on b · val (queries 100, gallery 50)" in headline([*other, record("base"), record("trained")])


def test_a_category_has_a_table_of_its_own():
    tables = results_tables([record("a", group=None), record("a", group="dress", value=0.1)])
    assert [table.title for table in tables] == ["b · val", "b · val · dress"]
    assert [table.rows[0].cells[0].value for table in tables] == [0.5, 0.1]
