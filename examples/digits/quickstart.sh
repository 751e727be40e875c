# The whole workflow: train, build an INT8 engine, judge it, use it. `make quickstart` runs this script.
# Usage: sh examples/digits/quickstart.sh FOLDER
set -eu
folder=${1:?the folder to write into}
set -x
python examples/digits/train.py --output "$folder"
rescompile build --model resnet20-cifar-bottleneck --weights "$folder/digits.safetensors" --crop 16 --precision int8 \
    --calibration-set "$folder/calibration.npz" --validation-set "$folder/validation" --max-top1-drop 1.0 \
    --output "$folder/engine" --force
rescompile verify "$folder/engine" --validation-set "$folder/validation" --min-agreement 0.98
rescompile run "$folder/engine" "$folder/digit.png"
set +x
cat <<SAID

Done. Next:
  open $folder/engine/report.html in a browser: how the engine was judged
  . .venv-quickstart/bin/activate: then \`rescompile --help\` works in this terminal
  rescompile build --weights my.pth --calibration-set my-photos/ --validation-set my-labelled-photos/: your own checkpoint
SAID
