#!/usr/bin/env python3
"""Leave only some operations in an unpacked source of mmcv, so that its ops compile in a fraction of the time.

``python3 tools/offline_ops.py /tmp/mmcv nms roi_align`` (the names of files in mmcv/ops/csrc/pytorch). Any other
operation says, when it is called, that it was left out.
"""
import re
import sys
from pathlib import Path

LEFT_OUT = '''
  m.def("__getattr__", [](const std::string &name) -> py::object {
    if (name.rfind("__", 0) == 0) throw py::attribute_error(name);
    return py::cpp_function([name](py::args, py::kwargs) {
      throw std::runtime_error("mmcv was compiled without " + name + ": run mmcv_ops without names");
    });
  });
'''


def keep(root: Path, names: list[str]) -> None:
    """Remove the sources of all other operations, and their names from the two files that list them.

    Raises:
        SystemExit: there is no such operation.
    """
    source = root / 'mmcv/ops/csrc/pytorch'
    there = {path.stem for path in source.glob('*.cpp')} - {'info', 'pybind'}
    if missing := {*names} - there:
        sys.exit(f'no operation {", ".join(sorted(missing))}; there are {", ".join(sorted(there))}')
    wanted = {*names, 'info', 'pybind', 'cudabind'}
    for path in (*source.glob('*.cpp'), *source.glob('cpu/*.cpp'), *source.glob('cuda/*.c*')):
        if re.sub('_(cuda|cpu)$', '', path.stem) not in wanted:
            path.unlink()
    text = ''.join((source / f'{name}.cpp').read_text() for name in (*names, 'info'))
    found = {*re.findall(r'\w+', text)}

    cuda = source / 'cuda/cudabind.cpp'
    head, body = re.match(r'((?:(?://|#include)[^\n]*\n)*)(.*)', cuda.read_text(), re.DOTALL).groups()
    # each part ends with the lines that register it
    parts = re.findall(r'.*?(?:REGISTER_DEVICE_IMPL\([^;]*;\s*)+', body, re.DOTALL)
    cuda.write_text(head + ''.join(
        part for part in parts if re.search(r'REGISTER_DEVICE_IMPL\((\w+)', part).group(1) in found))

    binding = source / 'pybind.cpp'
    head, body = binding.read_text().split('PYBIND11_MODULE', 1)
    opening, definitions = body.split('{', 1)
    definitions = [each for each in re.findall(r'm\.def\(.*?\);', definitions, re.DOTALL)
                   if re.search(r'&(\w+)', each).group(1) in found]
    binding.write_text(f'{head}PYBIND11_MODULE{opening}{{\n  ' + '\n  '.join(definitions) + LEFT_OUT + '}\n')


if __name__ == '__main__':
    keep(Path(sys.argv[1]), [*{'nms', *sys.argv[2:]}])  # nms is what wait_for_ops tries
