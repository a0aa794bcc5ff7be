# The program longnet for CPUs, with mpirun, as a user without rights. From the tree's folder:
#   docker build -f docker/cpu.Dockerfile -t longnet:cpu .
#   docker run --rm -v "$PWD:/work" longnet:cpu train configs/quickstart.yaml
# Two stages: one builds with compilers and -dev packages, the other holds the program and the libraries that
# it is linked with. Debian 12 or 13. See docker/README.md.
ARG BASE_IMAGE=debian:12-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
# Packages first: this layer stays while only sources change.
COPY scripts/setup.sh scripts/
RUN scripts/setup.sh
COPY . .
# Compilers at a time; 0: as many as there are cores.
ARG JOBS=0
# Kernels choose their instruction set at run time, so one image fits every x86-64 processor.
RUN cmake --preset cpu -DLN_TESTS=OFF -DLN_BENCH=OFF \
 && cmake --build build -j "$([ "$JOBS" = 0 ] && nproc || echo "$JOBS")" --target longnet_program \
 && install -D build/longnet /stage/usr/local/bin/longnet \
 && docker/runtime_packages.sh build/longnet > /stage/packages \
 && strip /stage/usr/local/bin/longnet

FROM ${BASE_IMAGE}
COPY --from=build /stage/packages /tmp/packages
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive xargs apt-get install -y -qq --no-install-recommends openmpi-bin < /tmp/packages \
 && rm -rf /var/lib/apt/lists/* /tmp/packages \
 && getent passwd 1000 | cut -d: -f1 | xargs -r userdel --remove \
 && useradd --create-home --uid 1000 longnet
COPY --from=build /stage/usr/local/bin/longnet /usr/local/bin/
COPY configs /usr/local/share/longnet/configs
# What scripts/mpirun_settings.sh sets: ranks share memory without the ptrace permission that containers lack,
# are not pinned to one core each, and may be more than the cores. Open MPI 5 reads the last three.
ENV OMPI_MCA_btl_vader_single_copy_mechanism=none \
    OMPI_MCA_hwloc_base_binding_policy=none \
    OMPI_MCA_rmaps_base_oversubscribe=1 \
    OMPI_MCA_smsc=^cma \
    PRTE_MCA_hwloc_default_binding_policy=none \
    PRTE_MCA_rmaps_default_mapping_policy=slot:oversubscribe
WORKDIR /work
RUN chown longnet:longnet /work
USER longnet
ENTRYPOINT ["longnet"]
CMD ["--help"]
