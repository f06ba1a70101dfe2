"""Drafts: a color mix laid out as granules whose areas hold its shares exactly. No model is needed for one."""
