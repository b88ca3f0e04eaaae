# Sourced with the environment's folder: passes pip's settings on to uv, which does not read them, and says where the
# CPU build of torch comes from (`torch_backend`: no argument for a wheel folder, else PyTorch's own index).

# pip config list prints lines like  global.find-links='/a /b'  and, from the environment,  :env:.find-links='/a'.
pip_setting() {
  "$1/bin/python" -m pip config list | sed -n "/^:env:/!s/^[a-z]*\.$2='\(.*\)'\$/\1/p" | tail -n 1
}

links=${PIP_FIND_LINKS:-$(pip_setting "$1" find-links)}
index=${PIP_INDEX_URL:-$(pip_setting "$1" index-url)}
cert=${PIP_CERT:-$(pip_setting "$1" cert)}
links=${links//\\n/ }
read -ra folders <<<"${links//$'\n'/ }" # pip separates by spaces, uv by commas
if [[ ${#folders[@]} -gt 0 ]]; then UV_FIND_LINKS=${UV_FIND_LINKS:-$(IFS=,; echo "${folders[*]}")}; export UV_FIND_LINKS; fi
if [[ -n $index ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
if [[ -n $cert ]]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$cert}; fi

torch_backend=(--torch-backend cpu)
IFS=, read -ra folders <<<"${UV_FIND_LINKS:-}"
for folder in "${folders[@]}"; do
  if compgen -G "${folder#file://}/torch-*+cpu-*.whl" >/dev/null; then torch_backend=(); fi
done
