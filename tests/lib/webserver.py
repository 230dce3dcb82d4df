# SPDX-License-Identifier: MIT
"""webserver - servers for the tests of proto/http: an honest one (nginx), and one that lies as it is told

Never: listens anywhere but on 127.0.0.1, or outlives its `with` block.
"""

import contextlib
import http.server
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request


class Nginx:
    """Serves a folder; counts what it sent."""

    def __init__(self, folder, root, tls=False):
        # A port that was free a moment ago may be another's now: this one is ours, and nginx shares it.
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.held.bind(("127.0.0.1", 0))
        self.folder, self.port, self.tls = folder, self.held.getsockname()[1], tls
        self.log = os.path.join(folder, "access.log")
        self.ca = os.path.join(folder, "cert.pem")
        listen = f"127.0.0.1:{self.port} reuseport" + (" ssl" if tls else "")
        certs = ""
        if tls:
            key = os.path.join(folder, "key.pem")
            subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", self.ca,
                            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                           check=True, capture_output=True, timeout=240)
            certs = f"ssl_certificate {self.ca}; ssl_certificate_key {key};"
        auth = os.path.join(folder, "passwd")
        with open(auth, "w") as f:
            f.write("guest:{PLAIN}secret\n")
        self.conf = os.path.join(folder, "nginx.conf")
        with open(self.conf, "w") as f:
            f.write(f"""daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
                events {{ worker_connections 256; }}
                http {{ log_format bytes '$status $body_bytes_sent'; access_log {self.log} bytes;
                    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
                    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5; keepalive_requests 1000000;
                    server {{ listen {listen}; {certs} root {root};
                        location /private/ {{ auth_basic x; auth_basic_user_file {auth}; alias {root}/; }}
                        location = /moved.raw {{ return 302 /base.raw; }}
                        location = /circle.raw {{ return 302 /circle.raw; }} }} }}""")

    def url(self, name):
        return f"https://localhost:{self.port}/{name}" if self.tls else f"http://127.0.0.1:{self.port}/{name}"

    def __enter__(self):
        exe = shutil.which("nginx") or "/usr/sbin/nginx"
        self.process = subprocess.Popen([exe, "-c", self.conf, "-e", os.path.join(self.folder, "error.log")],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            assert self.process.poll() is None and time.monotonic() < until, "nginx does not start"
            time.sleep(0.02)

    def __exit__(self, *exc):
        self.process.terminate()
        self.process.wait(240)
        self.held.close()

    def sent(self):
        """Bytes of images, so far. Each request is logged when its end has been sent, which is a moment before the next one, of
        whomever, is answered: there is one process."""
        context = ssl._create_unverified_context() if self.tls else None
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)).open(
                self.url("nothing"), timeout=240).close()
        with open(self.log) as f:
            lines = [line.split() for line in f]
        return sum(int(n) for status, n in lines if status == "206")


class Liar:
    """Serves `data` at every path, as `how(handler, first, last)` says; returning True: it has answered itself."""

    def __init__(self, data, how):
        self.data, self.etag, self.requests = data, '"one"', 0
        liar = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self, status, body, **headers):
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                if "Content_Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def honest(self, first, last):
                self.answer(206, liar.data[first:last + 1], ETag=liar.etag,
                            Content_Range=f"bytes {first}-{last}/{len(liar.data)}")

            def do_GET(self):
                liar.requests += 1
                m = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                first, last = int(m[1]), min(int(m[2]), len(liar.data) - 1)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    # The first request is the one of open().
                    if liar.requests == 1 or not how(self, first, last):
                        self.honest(first, last)

        class Listener(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # a short one drops connections, whose next try comes a second later

        self.server = Listener(("127.0.0.1", 0), Handler)

    def url(self, name="x.raw"):
        return f"http://127.0.0.1:{self.server.server_address[1]}/{name}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.thread.join(240)
        self.server.server_close()
