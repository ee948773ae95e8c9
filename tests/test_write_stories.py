"""tools/write_stories on the real stories260K: the same arguments write the same stories, whole and long enough."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_same_arguments_write_the_same_whole_stories(data_dir: Path, tmp_path: Path) -> None:
    models, openings = data_dir / "models", tmp_path / "openings.txt"
    openings.write_text("A title\nThe green dragon of the hill was looking for a friend to play with him.\n")
    texts = []
    for name in ("first.txt", "second.txt"):
        command = [sys.executable, ROOT / "tools" / "write_stories", models / "stories260K.bin", tmp_path / name]
        command += ["--tokenizer", models / "stories260K.tok512.bin", "--openings", openings]
        command += ["--mebibytes", "0.005", "--at-once", "16", "--threads", "1"]
        subprocess.run(command, check=True, capture_output=True)
        texts.append((tmp_path / name).read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    stories = [story.strip() for story in texts[0].split("<|endoftext|>")]
    assert stories.pop() == ""
    assert len(texts[0].encode()) >= 0.005 * 2**20
    assert len(set(stories)) == len(stories)
    assert all(len(story) >= 200 and story[-1] in '.!?"' for story in stories)
    begun = [story for story in stories if story.startswith("The green")]
    assert 0 < len(begun) < len(stories)
