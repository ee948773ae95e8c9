"""python tools/desktop_demo [MODEL.gguf], see window.py."""

from window import main

main()
