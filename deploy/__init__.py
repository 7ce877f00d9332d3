"""From one `fleet.yaml` to the folders that are copied to the Pis.

Compose files, credentials, the broker's configuration and its access control. It decides in pure
functions and writes files; it opens no connection and knows no network.
"""
