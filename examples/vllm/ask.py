"""Ask a vLLM server about a video, a recording or an image; the answer streams to the terminal.

    sh examples/vllm/serve.sh                                        # in another terminal
    python examples/vllm/ask.py clip.mp4 "what color is the circle ?"
    python examples/vllm/ask.py clip.mp4 "what color is the circle ?" --keep 0.6    # this request alone
    python examples/vllm/ask.py clip.mp4 "what color is the circle ?" --keep off

The file travels inside the request, so client and server may be two machines.
"""

import argparse
import base64
import mimetypes
from pathlib import Path

from openai import OpenAI

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", type=Path)
parser.add_argument("question")
parser.add_argument("--server", default="http://localhost:8000", help="(default: %(default)s)")
parser.add_argument("--keep", help="share of audio and video tokens to keep, or off (default: the server's)")
parser.add_argument("--no-sound", action="store_true", help="leave the sound of a video out; for videos without any")
parser.add_argument("--max-tokens", type=int, default=64, help="length of the answer (default: %(default)s)")
options = parser.parse_args()

mime = mimetypes.guess_type(options.file)[0] or "application/octet-stream"
kind = mime.partition("/")[0] + "_url"  # video_url, audio_url or image_url
url = f"data:{mime};base64,{base64.b64encode(options.file.read_bytes()).decode()}"
content = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": options.question}]

extra = {}
if kind == "video_url":  # fps: the rate at which the server samples; Qwen3-Omni's processor would assume another
    extra["mm_processor_kwargs"] = {"fps": 2.0, "use_audio_in_video": not options.no_sound}
if options.keep is not None:
    extra["vllm_xargs"] = {"omnidrop": "off"} if options.keep == "off" else {"omnidrop_keep": float(options.keep)}

client = OpenAI(base_url=f"{options.server}/v1", api_key="none")
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": content}], max_tokens=options.max_tokens, temperature=0,
    stream=True, extra_body=extra,
)  # fmt: skip
for part in stream:
    for choice in part.choices:
        print(choice.delta.content or "", end="", flush=True)
print()
