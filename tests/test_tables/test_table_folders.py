"""No run is gone on with as that of another row, or of what a row was before."""

import pytest
import yaml

from rkan_mm.preflight import PreflightError
from rkan_mm.tables.table import Table


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a', 'b'):
        (tmp_path / f'{name}.py').write_text('')

    def table(*rows):
        rows = [dict(dict(config='a.py'), **row) for row in rows]
        (tmp_path / 'table.yml').write_text(yaml.safe_dump(
            dict(title='T', metric='accuracy/top1', seeds=[0], rows=rows)))
        return Table('table.yml')
    return table


@pytest.mark.parametrize('names', [('RKAN', 'RKAN+'), ('KAN (a)', 'KAN [a]'), ('cnn', 'CNN'), ('+', '++')])
def test_names_of_one_folder(write, names):
    with pytest.raises(PreflightError, match="would be trained in one folder, '.*': let their names differ in letters"):
        write(*(dict(name=name) for name in names))


def test_folders_of_rows(write):
    table = write(dict(name='RKAN'), dict(name='RKAN 2'))
    assert [table.folder(name, 1).as_posix() for name in table.rows] == [
        'work_dirs/tables/table/rkan/seed1', 'work_dirs/tables/table/rkan-2/seed1']


@pytest.mark.parametrize(('change', 'message'), [
    (dict(options={'optim_wrapper.optimizer.lr': 0.2}), r"begun with options=.*0.1\} \(now .*0.2\}\), and would be"),
    (dict(config='b.py'), r"begun with config='a' \(now 'b'\), .* To run it anew, remove that folder."),
    (dict(name='row!', published=5), None),
])
def test_a_row_that_was_changed_since_it_was_begun(write, change, message):
    """Also where its lines have been taken out of the record: a resume would give the figures of before."""
    row = dict(name='row', options={'optim_wrapper.optimizer.lr': 0.1})
    table = write(row)
    for _ in range(2):
        table.begin('row', table.folder('row', 0))
    table = write({**row, **change})
    name = change.get('name', 'row')
    if message is None:
        return table.begin(name, table.folder(name, 0))
    with pytest.raises(PreflightError, match=message):
        table.begin(name, table.folder(name, 0))
