"""The commands of ``celery -A app aicache``: a file each, and ``base`` with what they share."""
