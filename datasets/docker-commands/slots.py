"""Slot values for generate.py: what may stand where a phrasing says {container}, {image} and so on.

Each slot has a train and a test pool. Pools of open classes (names, paths, images) are disjoint but for SHARED values
per pool, which generate.py adds; CLOSED classes (docker's own words) are the same on both sides.
A value is a string, or a pair (what the request says, what the command says).
"""

SHARED = 2

CLOSED = {
    "detach": {
        "train": [("", ""), ("", ""), (" in the background", "-d "), (" detached", "-d ")],
        "test": [("", ""), ("", ""), (" in the background", "-d "), (" in detached mode", "-d ")],
    },
    "shell": ["sh", "bash", "ash"],
    "status": ["exited", "paused", "created", "restarting", "dead"],
}


def spread(heads, tails):
    """Every head with a tail of its own turn: many names from two short lists, without their whole product."""
    names = []
    for i, head in enumerate(heads):
        for step in (0, 3, 7):
            names.append(head + tails[(2 * i + step) % len(tails)])
    return sorted(set(names))


def quoted(commands):
    """A shell command stands in backticks in the request and bare in the answer."""
    return [("`" + c + "`", c) for c in commands]


def durations(minutes, hours, seconds):
    """Durations in words, and as docker spells them."""
    return (
        [(f"{n} minutes", f"{n}m") for n in minutes]
        + [(f"{n} hours", f"{n}h") for n in hours]
        + [(f"{n} seconds", f"{n}s") for n in seconds]
    )


CONTAINER_TAILS = ["", "-1", "-2", "-dev", "-prod", "-test", "_old", "_new", "-staging", "3"]

OPEN = {
    "container": {
        "train": spread(
            ["web", "api", "db", "cache", "worker", "frontend", "backend", "nginx", "redis", "postgres", "queue", "proxy",
             "auth", "search", "mysql", "app", "gateway", "scheduler", "blog", "shop"],
            CONTAINER_TAILS,
        ),
        "test": spread(
            ["billing", "mailer", "grafana", "catalog", "orders", "metrics", "wiki", "chat", "forum", "payments", "media",
             "tracker"],
            ["", "-7", "-eu", "-blue", "_backup", "-main", "-canary"],
        ),
    },
    "new_name": {
        "train": spread(["website", "server", "database", "store", "primary", "archive", "site", "core"],
                        ["", "-v2", "-live", "_2", "-east", "-final", "-a"]),
        "test": spread(["portal", "ledger", "warehouse", "hub", "engine"], ["-v3", "-west", "_b", "-next", ""]),
    },
    "image": {
        "train": ["nginx:1.25", "nginx:alpine", "redis:7", "redis:6.2-alpine", "postgres:16", "postgres:15-alpine",
                  "python:3.12-slim", "python:3.11", "node:20-alpine", "node:18", "alpine:3.19", "ubuntu:22.04",
                  "golang:1.22", "mysql:8.0", "mongo:7", "httpd:2.4", "rabbitmq:3-management", "memcached:1.6",
                  "busybox:1.36", "debian:12-slim", "traefik:v3.0", "grafana/grafana:10.4.2", "acme/web:2.1",
                  "acme/api:latest", "team/worker:0.9", "myapp:latest", "openjdk:21", "rust:1.78", "php:8.3-fpm",
                  "fedora:40", "ruby:3.3", "vault:1.13", "backend:v4", "frontend:dev", "kong:3.6", "sonarqube:10"],
        "test": ["haproxy:2.9", "mariadb:11", "caddy:2-alpine", "elixir:1.16", "influxdb:2.7", "wordpress:6.5",
                 "perl:5.38", "nats:2.10", "ghost:5-alpine", "acme/billing:3.2", "studio/render:1.8",
                 "consul:1.15", "drupal:10.2", "julia:1.10", "rockylinux:9", "catalog:v12"],
    },
    "repository": {
        "train": ["acme/web:2.2", "acme/api:1.4.0", "team/worker:1.0", "registry.example.com/shop:3.1",
                  "registry.example.com/blog:latest", "ghcr.io/acme/site:v5", "ghcr.io/team/proxy:0.3", "anna/app:dev",
                  "bob/backend:v2", "docs:1.0", "myapp:v3", "frontend:2024", "quay.io/lab/search:1.1", "web:stable",
                  "lab/queue:7", "anna/notes:latest", "shop:test", "team/gateway:2.0-rc1"],
        "test": ["acme/mailer:4.0", "carla/portal:v8", "ghcr.io/studio/render:1.9", "registry.example.org/orders:6.2",
                 "wiki:2.5", "quay.io/data/ledger:0.7", "dora/tracker:beta", "metrics:v11", "studio/media:latest"],
    },
    "registry": {
        "train": ["ghcr.io", "quay.io", "registry.example.com", "docker.io", "registry.gitlab.com", "hub.acme.com",
                  "registry.internal:5000", "images.team.dev", "localhost:5000", "cr.lab.org", "eu.registry.net",
                  "registry.shop.io"],
        "test": ["registry.example.org", "images.studio.dev", "cr.data.net", "docker.north.io", "harbor.acme.org:8443",
                 "packages.media.com"],
    },
    "volume": {
        "train": ["data", "pgdata", "db-data", "app_data", "redis-data", "uploads", "web-logs", "cache_vol", "mysql_data",
                  "static-files", "config", "backups", "node_modules", "search-index", "shared", "media-store"],
        "test": ["ledger-data", "mail_spool", "grafana-store", "photos", "wiki_pages", "orders-db", "keys",
                 "render-cache"],
    },
    "network": {
        "train": ["backend", "frontend", "app-net", "web_net", "internal", "proxy-net", "db-network", "mesh", "public",
                  "dev_network", "shared-net", "monitoring", "lan", "services"],
        "test": ["billing-net", "edge", "media_net", "private", "mail-network", "orders_lan", "blue-net"],
    },
    "service": {
        "train": ["web", "api", "db", "worker", "redis", "nginx", "frontend", "backend", "scheduler", "search", "auth",
                  "queue", "proxy", "cache", "migrations", "celery"],
        "test": ["billing", "mailer", "metrics", "gateway2", "orders", "renderer", "ledger", "websocket"],
    },
    "inner_path": {
        "train": ["/data", "/app", "/var/lib/postgresql/data", "/var/lib/mysql", "/etc/nginx", "/usr/share/nginx/html",
                  "/app/uploads", "/var/log", "/srv", "/opt/app", "/app/config", "/tmp", "/home/app", "/var/www",
                  "/usr/src/app", "/config"],
        "test": ["/srv/files", "/var/lib/grafana", "/opt/render/cache", "/app/media", "/etc/haproxy", "/mnt/store",
                 "/var/spool/mail", "/home/wiki/pages"],
    },
    "inner_file": {
        "train": ["/etc/nginx/nginx.conf", "/app/app.log", "/var/log/error.log", "/data/dump.sql", "/app/config.json",
                  "/etc/hosts", "/tmp/result.csv", "/app/package.json", "/var/log/access.log", "/srv/notes.txt",
                  "/data/export.json", "/etc/passwd", "/usr/src/app/main.py", "/opt/app/settings.yml"],
        "test": ["/etc/haproxy/haproxy.cfg", "/srv/report.pdf", "/app/billing.log", "/var/lib/orders.db",
                 "/tmp/trace.out", "/opt/render/frame.png", "/data/users.csv"],
    },
    "local": {
        "train": ["./backup", "/tmp", "./out", "~/downloads", ".", "/home/anna/files", "./logs", "/var/backups", "./data",
                  "~/work", "./export", "/tmp/files"],
        "test": ["./results", "~/reports", "/home/carla/inbox", "/tmp/copy", "./archive", "~/saved"],
    },
    "local_file": {
        "train": ["./config.json", "./app.py", "index.html", "./nginx.conf", "/tmp/data.csv", "backup.sql", "./main.js",
                  "settings.yml", "/home/anna/key.pem", "./dump.sql", "script.sh", "./logo.png", "notes.txt",
                  "./schema.sql"],
        "test": ["./haproxy.cfg", "report.html", "/tmp/users.json", "./theme.css", "invoice.pdf", "./seed.sql",
                 "/home/carla/cert.pem"],
    },
    "archive": {
        "train": ["web.tar", "backup.tar", "image.tar", "nginx.tar", "/tmp/app.tar", "./images/api.tar", "redis.tar",
                  "postgres16.tar", "/backups/db.tar", "myapp-latest.tar", "worker_v2.tar", "./base.tar"],
        "test": ["caddy.tar", "billing-3.tar", "/mnt/usb/wiki.tar", "./saved/media.tar", "render.tar",
                 "/tmp/orders_6.tar"],
    },
    "dockerfile": {
        "train": ["Dockerfile.dev", "Dockerfile.prod", "docker/Dockerfile", "Dockerfile.test", "build/Dockerfile",
                  "api.Dockerfile", "Dockerfile.alpine", "deploy/web.Dockerfile"],
        "test": ["Dockerfile.arm", "ops/Dockerfile", "mailer.Dockerfile", "Dockerfile.slim", "images/Dockerfile.ci"],
    },
    "env": {
        "train": ["DEBUG", "NODE_ENV", "PORT", "POSTGRES_PASSWORD", "MYSQL_ROOT_PASSWORD", "LOG_LEVEL", "APP_ENV",
                  "API_KEY", "TZ", "DB_HOST", "REDIS_URL", "WORKERS", "SECRET_KEY", "LANG"],
        "test": ["CACHE_SIZE", "MAIL_HOST", "STAGE", "TIMEOUT", "ADMIN_USER", "REGION", "QUEUE_NAME"],
    },
    "value": {
        "train": ["true", "1", "production", "debug", "8080", "secret", "development", "info", "localhost", "changeme",
                  "test", "4", "staging", "admin123", "utf8", "0"],
        "test": ["30", "north", "warn", "verbose", "mail.local", "512", "carla", "false"],
    },
    "command": {
        "train": quoted(["ls /app", "env", "cat /etc/hosts", "ps aux", "date", "whoami", "df -h", "nginx -t",
                         "python manage.py migrate", "redis-cli ping", "ls -la /data", "cat /app/config.json", "npm test",
                         "pg_isready", "hostname", "uname -a", "ls /var/log", "rails db:migrate", "pwd", "free -m"]),
        "test": quoted(["ls /srv", "cat /etc/passwd", "npm run build", "uptime", "python --version", "du -sh /data",
                        "mysqladmin status", "id", "ls -l /tmp", "cat /proc/meminfo"]),
    },
    "host_port": {
        "train": ["80", "8080", "3000", "5000", "8000", "8888", "9090", "5433", "8081", "443", "3307", "6380", "9000",
                  "4000", "8443", "7000", "1234", "2222", "10080", "5601"],
        "test": ["8090", "3010", "9443", "5050", "7777", "18080", "6001", "4321", "2080"],
    },
    "port": {
        "train": ["80", "3000", "5432", "6379", "8080", "443", "5000", "8000", "27017", "3306", "9000", "4000"],
        "test": ["8086", "2368", "9042", "8025", "1883", "4222", "7070"],
    },
    "memory": {
        "train": ["512m", "1g", "256m", "2g", "128m", "4g", "64m", "768m", "1500m", "8g", "300m"],
        "test": ["384m", "3g", "200m", "6g", "640m", "16g"],
    },
    "lines": {
        "train": ["10", "20", "50", "100", "200", "5", "500", "1000", "30", "25", "15", "40", "300", "75", "1"],
        "test": ["60", "12", "150", "250", "35", "8", "400"],
    },
    "duration": {
        "train": durations([5, 10, 15, 30, 45, 20, 90], [1 + n for n in (1, 2, 3, 5, 11, 23)], [30, 10, 45]),
        "test": durations([25, 40, 12, 55, 8], [5, 8, 18, 36], [20, 50]),
    },
}


def pool(slot, split):
    """The values that `slot` may take in `split`."""
    if slot in CLOSED:
        values = CLOSED[slot]
        return values[split] if isinstance(values, dict) else values
    values = OPEN[slot]
    return values["train"] if split == "train" else values["test"] + values["train"][:SHARED]
