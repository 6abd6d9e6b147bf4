# The server. CPU:   docker build -t llava-uhd .
#             CUDA:  docker build -t llava-uhd --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#             Run:   docker run --publish 8000:8000 --env LLAVA_UHD_API_KEY=... llava-uhd
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HOME=/home/llava/.cache/huggingface

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY llava_uhd ./llava_uhd
RUN pip install --index-url "$TORCH_INDEX" -c constraints.txt torch \
    && pip install -c constraints.txt '.[serve]' \
    && useradd --create-home --uid 10001 llava

USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["llava-uhd"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
