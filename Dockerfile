# Runs engines on a CPU: the base installation, without torch and ONNX. Engines are mounted, and the program is not root.
#
#   docker build -t rescompile .
#   docker run --rm -v "$PWD/engines:/engines:ro" -v "$PWD/photos:/photos:ro" rescompile run /engines/resnet50-int8 /photos
FROM python:3.12-slim

WORKDIR /opt/rescompile
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY calibration ./calibration
COPY fused_kernels ./fused_kernels
COPY rescompile ./rescompile
RUN pip install --no-cache-dir --constraint constraints.txt . \
    && useradd --create-home --uid 1000 engine

USER engine
WORKDIR /home/engine
ENTRYPOINT ["rescompile"]
CMD ["doctor"]
