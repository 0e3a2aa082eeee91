"""The Hugging Face hub as this project needs it: metadata, range reads, resumable verified downloads.

`retry.py` says what is tried again and how long it waits, `client.py` holds the HTTP rules, `api.py` asks for
revisions and file lists, `remote.py` reads a file in place, `fetch.py` brings files to disk, `record.py` remembers
what was brought. The official client serves as the reference in the tests; it cannot resume a file in a new process
and fails at once on a 503, hence this package.
"""
