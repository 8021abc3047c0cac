"""Followers trained by Stable-Baselines3. Nothing else in the library imports it, so it is loaded only where it is used."""
