"""Abuse: what a hostile client or file sends, against every route and every reader of files, counted.

junk.py      hostile values: numbers, texts, names, URLs, templates, JSON that is none
asking.py    one request to an ASGI application, byte by byte, and what came back
site.py      all applications in this process over simulated replicas, and traps around them
requests.py  hostile requests to each route
documents.py hostile files of each format, and who reads them
readers.py   the readers in a process of their own, since a file may end it
heavy.py     bombs and very long lines, with the memory that they took
sockets.py   what needs a socket: slow, endless and broken HTTP, at a local uvicorn
__main__.py  all of it, counted: `python -m tests.abuse` (`make abuse`)
"""
