"""The verbs `serve`, `chat` and `web` of the command line; `llava_uhd.cli` mounts them.

Only typer is imported here: help answers at once.
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..errors import InputError, first_line
from ..generation.sampling import MAX_NEW_TOKENS
from ..loading import DEFAULT_MODEL
from ..options import Device, Dtype, MaxPages, MaxSlices, Model, Pages, Quantization, Threads, former_option
from ..terminal import status

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Maximum number of requests decoded together.")]
MaxQueueSize = Annotated[
    int,
    typer.Option(min=1, help="Maximum number of queued requests; further ones get 429."),
]
MaxWaiting = Annotated[int | None, typer.Option("--max-waiting", min=1, hidden=True)]  # former name
LONGEST = 86_400.0  # seconds: a day
Deadline = Annotated[float, typer.Option(min=0.1, max=LONGEST, help="Maximum seconds from arrival to the last token.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum number of new tokens of a request that sets none.")]
CacheMegabytes = Annotated[int, typer.Option(min=0, help="Size of the image feature cache in MiB.")]
PrefixMegabytes = Annotated[int, typer.Option(min=0, help="Size of the prefix KV cache in MiB.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Maximum number of pixels of an image.")]

API_KEY = "LLAVA_UHD_API_KEY"
SECONDS_TO_READ = 30.0  # in which a client must have read the end of its answer

LARGEST_IMAGE = 2**26  # 8192 x 8192


def serve(
    model: Model = DEFAULT_MODEL,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Annotated[str | None, typer.Option(help="Model name in the API. Default: name of --model.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=API_KEY, help="Key that clients must send. Default: none.")
    ] = None,
    batch_size: BatchSize = 8,
    max_queue_size: MaxQueueSize = 64,
    max_waiting: MaxWaiting = None,  # former name
    deadline: Deadline = 120.0,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    cache_mb: CacheMegabytes = 256,
    prefix_cache_mb: PrefixMegabytes = 512,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Maximum size of a request body in MiB.")] = 20,
    max_pending_mb: Annotated[
        int, typer.Option(min=1, help="Maximum total size of bodies being received or parsed, in MiB.")
    ] = 256,
    body_timeout: Annotated[
        float, typer.Option(min=0.1, max=LONGEST, help="Maximum seconds for receiving a request body.")
    ] = 30.0,
    max_messages: Annotated[int, typer.Option(min=1, help="Maximum number of messages of a request.")] = 1000,
    max_text: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of characters of a request. Default: 32 per token of the context."),
    ] = None,
    max_images: Annotated[int, typer.Option(min=0, help="Maximum number of images of a request.")] = 16,
    max_slices: Annotated[int, typer.Option(min=1, help="Maximum value of a request's max_slices.")] = 64,
    max_pixels: MaxPixels = LARGEST_IMAGE,
    max_total_pixels: Annotated[
        int, typer.Option(min=1, help="Maximum number of pixels of all images of a request.")
    ] = 2**27,
    image_timeout: Annotated[
        float,
        typer.Option(min=0.1, max=LONGEST, help="Maximum seconds for decoding and slicing the images of a request."),
    ] = 30.0,
    max_connections: Annotated[int, typer.Option(min=1, help="Maximum number of connections.")] = 256,
    head_timeout: Annotated[
        float, typer.Option(min=0.1, max=LONGEST, help="Seconds after which a connection without a request is closed.")
    ] = 10.0,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose pages may ask from a browser, or * for all (repeat). Default: none."),
    ] = None,
    threads: Threads = None,
    image_host: Annotated[
        list[str] | None,
        typer.Option(help="Host whose images may be fetched by URL (HOST or HOST:PORT; repeat). Default: none."),
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout once ready.")] = False,
) -> None:
    """Serve OpenAI's chat-completions API until stopped; running requests are finished first."""
    from ..threads import wait_passively
    from .memory import limit_arenas

    wait_passively()  # before anything imports torch
    limit_arenas()
    if api_key is None and API_KEY in os.environ:  # which counts as not set where it is empty
        api_key = os.environ[API_KEY]
    from .connections import ConnectionLimits, affordable_connections
    from .limits import MIB, Limits
    from .remote import ImageSource, check_image_host
    from .running import run_server
    from .server import ServerOptions, check_api_key, check_origin, create_app

    if api_key is not None:
        _check_option(check_api_key, api_key, f"--api-key or {API_KEY}")
    for origin in cors_origin or ():
        _check_option(check_origin, origin, "--cors-origin")
    for host_name in image_host or ():
        _check_option(check_image_host, host_name, "--image-host")
    options = ServerOptions(
        model_name=name or _model_name(model),
        api_key=api_key,
        limits=Limits(
            body_bytes=max_body_mb * MIB,
            pending_bytes=max(max_pending_mb, max_body_mb) * MIB,
            body_seconds=body_timeout,
            messages=max_messages,
            text=max_text,
            images=max_images,
            slices=max_slices,
        ),
        images=ImageSource(frozenset(image_host or ()), max_body_mb * MIB),
        max_requests=max_connections,
        cors_origins=tuple(cors_origin or ()),
    )
    connections = ConnectionLimits(
        number=affordable_connections(max_connections),
        head_seconds=head_timeout,
        request_seconds=body_timeout + deadline + SECONDS_TO_READ,
    )
    max_queue_size = former_option("max-waiting", max_waiting, "max-queue-size", max_queue_size)
    check_port(host, port)
    bounds = _bounds(batch_size, max_queue_size, deadline, max_new_tokens, cache_mb, prefix_cache_mb, max_pixels)
    bounds |= {"max_total_pixels": max_total_pixels, "image_seconds": image_timeout}
    engine = _engine(model, device, dtype, quantization, threads, **bounds)

    def announce(url: str) -> None:
        if as_json:
            typer.echo(json.dumps({"url": f"{url}/v1", "model": options.model_name}))
            sys.stdout.flush()
        else:
            typer.echo(f"{options.model_name} answers at {url}/v1 (stop with Ctrl-C)", err=True)

    run_server(create_app(engine, options), host, port, deadline, announce, connections)


def _check_option(check: Callable[[str], None], value: str, option: str) -> None:
    try:
        check(value)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def chat(
    images: Annotated[
        list[str] | None, typer.Argument(help="Images, PDF or TIFF files of the first question.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    pages: Pages = None,
    max_pages: MaxPages = 20,
    max_slices: MaxSlices = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = MAX_NEW_TOKENS,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 takes the most likely words.")] = 0.0,
    device: Device = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the conversation as JSON when it ends.")] = False,
) -> None:
    """Talk about images in the terminal: a question a line, /help for commands."""
    from rich.console import Console

    from ..pages import open_all
    from ..planning import ImagePlanner

    if pages is not None and not images:
        raise typer.BadParameter("--pages chooses pages of the files of the first question: name one")
    planner = ImagePlanner.load(model)  # files are checked before the model is loaded
    opened = open_all(images or [], pages, max_pages=max_pages, num_pixels=planner.num_pixels(max_slices))
    planner.check_context([planner.fit_letters(page.image, max_slices).size for page in opened], max_slices)

    from .chat import HELP, Chat, input_lines
    from .generation import Sampling

    engine = _engine(model, device, dtype, quantization, threads, batch_size=1, preprocessing_workers=1, deadline=3600)
    with engine, open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere) if as_json else Console()
        conversation = Chat(engine, Sampling(max_new_tokens, temperature), max_slices, console, max_pages)
        conversation.add_pages(opened)
        if sys.stdin.isatty():
            conversation.say(HELP)
        conversation.run(input_lines("> "))
    if as_json:
        typer.echo(json.dumps({"model": model, "messages": conversation.transcript()}, ensure_ascii=False))
    if conversation.failures and not sys.stdin.isatty():
        raise typer.Exit(1)


def web(
    model: Model = DEFAULT_MODEL,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    batch_size: BatchSize = 4,
    max_queue_size: MaxQueueSize = 32,
    max_waiting: MaxWaiting = None,  # former name
    deadline: Deadline = 120.0,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    cache_mb: CacheMegabytes = 256,
    prefix_cache_mb: PrefixMegabytes = 512,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Maximum size of an image file in MiB.")] = 20,
    max_pixels: MaxPixels = LARGEST_IMAGE,
    device: Device = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout once ready.")] = False,
) -> None:
    """Serve a web page for questions about images that shows the slices behind each answer; runs until stopped."""
    import tempfile
    from pathlib import Path

    from ..loading import abilities
    from ..web.page import build_page, launch_page, run_until_stopped

    max_queue_size = former_option("max-waiting", max_waiting, "max-queue-size", max_queue_size)
    check_port(host, port)
    bounds = _bounds(batch_size, max_queue_size, deadline, max_new_tokens, cache_mb, prefix_cache_mb, max_pixels)
    engine = _engine(model, device, dtype, quantization, threads, **bounds)
    with engine, tempfile.TemporaryDirectory() as folder:
        page = build_page(engine, Path(folder), _model_name(model), abilities(model))
        url = launch_page(page, host, port, max_upload_mb * 2**20)
        if as_json:
            typer.echo(json.dumps({"url": url, "model": _model_name(model)}))
            sys.stdout.flush()
        else:
            typer.echo(f"the page is at {url} (stop with Ctrl-C)", err=True)
        run_until_stopped(page)


def mount(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(epilog="Example: llava-uhd serve --model tiny --port 8000")(serve)
    app.command(epilog="Example: llava-uhd chat examples/receipt.png")(chat)
    app.command(epilog="Example: llava-uhd web --model tiny")(web)


def _model_name(model: str) -> str:
    """Return a model's name without its path."""
    from pathlib import Path

    return Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model


def _bounds(
    batch_size: int,
    max_queue_size: int,
    deadline: float,
    max_new_tokens: int,
    cache_mb: int,
    prefix_cache_mb: int,
    max_pixels: int,
) -> dict[str, Any]:
    """Return the engine options of `serve` and `web`, in bytes instead of MiB."""
    return {
        "batch_size": batch_size,
        "max_queue_size": max_queue_size,
        "deadline": deadline,
        "max_new_tokens": max_new_tokens,
        "cache_bytes": cache_mb * 2**20,
        "prefix_bytes": prefix_cache_mb * 2**20,
        "max_pixels": max_pixels,
    }


def _engine(
    model: str, device: str | None, dtype: str, quantization: str | None, threads: int | None, **options: Any
) -> Any:
    """Return the engine with its model loaded, a spinner on stderr meanwhile; see `EngineOptions` for the options."""
    from ..threads import use_threads, wait_passively

    wait_passively()
    with status(f"loading {model}"):
        from ..loading import load, load_calibration
        from .engine import Engine, EngineOptions

        use_threads(threads)
        checked = EngineOptions(**options)
        loaded, processor = load(model, device, dtype, quantization)
        calibration = load_calibration(model)
    return Engine(loaded, processor, checked, calibration)


def check_port(host: str, port: int) -> None:
    """Try to listen on an address before anything is loaded.

    Raises:
        ValueError: the port is in use, or the address is not this machine's.
    """
    if port == 0:
        return
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            if os.name == "posix":  # elsewhere it would let two servers share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise InputError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --port, or 0 for any that is free"
        ) from error
