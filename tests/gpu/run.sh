#!/usr/bin/env bash
# On a bare machine: one half (1 or 2) of tests/gpu, or the figures. Wheels are in .whl/; the engines' entry points need
# the package's metadata.
set -uo pipefail
cd "$(dirname "$0")/../.."
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl || exit 1
python3 - "$site" <<'P'
import pathlib, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
folder = pathlib.Path(sys.argv[1], f"{project['name']}-{project['version']}.dist-info")
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
points = project["entry-points"].items()
(folder / "entry_points.txt").write_text("\n".join(f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in points))
P
export PYTHONPATH=$site:$PWD PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
command -v nvidia-smi >/dev/null && nvidia-smi -L
case "${1:-}" in
  1) files="test_ipc.py test_sharing.py test_batches.py test_check.py test_align.py" ;;
  2) files="test_faults.py test_memory.py" ;;
  figures) files="test_figures.py" ;;
  *) echo "usage: $0 1|2|figures" >&2; exit 2 ;;
esac
python3 -m pytest -m gpu $(printf 'tests/gpu/%s ' $files) -s -rA -p no:cacheprovider 2>&1 | tee "${OUT:-/tmp}/gpu-$1.log"
exit "${PIPESTATUS[0]}"
