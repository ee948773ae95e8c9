"""The HTTP server: OpenAI's and Ollama's shapes over one scheduler per model, and the web page.

Requests become canvases (openai.py, ollama.py, native.py), a scheduler denoises all of them together (scheduler.py),
answers are read as they settle (answers.py). guard.py stands before everything. Needs the extra `serve`; nothing here
is imported by the rest of the package.
"""
