"""Tells Home Assistant what there is to show: discovery messages, no state of their own."""
