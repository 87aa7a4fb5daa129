"""``ssh-agent`` for GitHub Apps."""
