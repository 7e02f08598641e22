"""nginx in front of a server, on the processor of the load: what it costs is not counted as the server's."""

import os
import subprocess

_CONFIGURATION = """daemon off; master_process off; worker_processes 1;
pid {directory}/nginx.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 1000000;
    client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
    uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    upstream server {{ server 127.0.0.1:{behind}; {keep} }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ proxy_pass http://server; proxy_set_header Host $http_host; {version} }}
    }}
}}
"""

_KEEP = {"close": ("", ""), "keep-alive": ("keepalive 64;", 'proxy_http_version 1.1; proxy_set_header Connection "";')}


def start(how, port, behind, directory):
    """Starts it. `how` is "close" or "keep-alive": its connections to the server."""
    keep, version = _KEEP[how]
    path = os.path.join(directory, "nginx.conf")
    with open(path, "w") as file:
        file.write(_CONFIGURATION.format(directory=directory, port=port, behind=behind, keep=keep, version=version))
    command = ["nginx", "-c", path, "-p", directory]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
