#!/bin/sh
# Writes secrets.env and infra-secrets.env beside itself, with random passwords, once: TiDB and Grafana
# read theirs at their first start only, so new files would not fit a cluster that is there already.
set -eu
umask 077
cd "$(dirname "$0")"

for file in secrets.env infra-secrets.env; do
    if [ -e "$file" ]; then
        echo "$file is there already. Nothing was written." >&2
        exit 1
    fi
done

random() { # so many bytes, as hexadecimal digits
    od -An -v -tx1 -N "$1" /dev/urandom | tr -d ' \n'
}

tidb=$(random 24)
minio=$(random 24)

cat > infra-secrets.env <<END
TIDB_PASSWORD=$tidb
TIDB_ROOT_PASSWORD=$(random 24)
MINIO_ROOT_USER=feedmesh
MINIO_ROOT_PASSWORD=$minio
GF_SECURITY_ADMIN_PASSWORD=$(random 16)
END

cat > secrets.env <<END
FEED_SQL_URL=mysql+aiomysql://feed:$tidb@tidb:4000/feed?charset=utf8mb4
FEED_JWT_SECRET=$(random 32)
AWS_ACCESS_KEY_ID=feedmesh
AWS_SECRET_ACCESS_KEY=$minio
END

echo "secrets.env and infra-secrets.env are written."
