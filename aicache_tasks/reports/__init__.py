"""
What people look at: questions over the summary records, and the ``celery aicache`` command that asks them.

``spans`` which records cover a time, ``queries`` the questions, ``rows`` the answers in rows, ``wording`` numbers and
names as people read them, ``tables`` rows on a screen, ``cli`` and ``commands`` the command, ``flower`` the tab,
``html`` its page as a file, ``families`` and ``prometheus`` the metrics, ``inspect`` what a worker answers, ``doctor``
what is wrong with a set-up.
"""
